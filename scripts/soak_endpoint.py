"""Puts load on an endpoint that serves handler.py: concurrent requests, a fifth of them bad, then a long row of them.

    python scripts/soak_endpoint.py http://127.0.0.1:5000 --images mstr_hf/pretrained/samples --pid PID

Every good request must be answered with the reading that a single quiet request gets, every bad one with a 4xx. With
`--pid` the memory of the server's process is followed (Linux), over good and bad requests in turn.
"""

import argparse
import base64
import json
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

import requests

BAD: list[dict[str, Any]] = [
    {"data": b"no image", "headers": {"Content-Type": "image/png"}},
    {"data": b"{", "headers": {"Content-Type": "application/json"}},
    {"json": {"inputs": "http://127.0.0.1/word.png"}},
    {"json": {"inputs": base64.b64encode(b"no image").decode()}},
    {"json": {"inputs": [], "parameters": {"languages": ["xx"]}}},
]
REPORT_EVERY = 200


def main() -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", help="address of the endpoint")
    parser.add_argument("--images", type=Path, required=True, help="folder of JPEG files to send")
    parser.add_argument("--pid", help="the server's process")
    parser.add_argument("--concurrent", type=int, default=200, help="requests at the same time (default: 200)")
    parser.add_argument("--requests", type=int, default=2000, help="requests of the long row (default: 2000)")
    arguments = parser.parse_args()

    images = sorted(arguments.images.glob("*.jpg"))
    good = [{"data": image.read_bytes(), "headers": {"Content-Type": "image/jpeg"}} for image in images]
    expected = [send(arguments.url, request)[1] for request in good]

    def check(number: int) -> str:
        """Sends a request, each fifth a bad one, and judges the answer."""
        if number % 5 == 4:
            status, _ = send(arguments.url, BAD[number // 5 % len(BAD)])
            return "bad, refused" if 400 <= status < 500 else f"bad, answered {status}"
        status, answer = send(arguments.url, good[number % len(good)])
        if status != 200:
            return f"good, answered {status}"
        return "good, right" if answer == expected[number % len(good)] else "good, wrong"

    start = time.perf_counter()
    with ThreadPoolExecutor(arguments.concurrent) as pool:
        outcomes = Counter(pool.map(check, range(arguments.concurrent)))
    print(f"{arguments.concurrent} at once in {time.perf_counter() - start:.1f} s: {dict(outcomes)}", flush=True)

    memory = []
    start = time.perf_counter()
    for number in range(arguments.requests):
        outcomes[check(number)] += 1
        if arguments.pid and number % REPORT_EVERY == REPORT_EVERY - 1:
            memory.append(resident(arguments.pid))
            print(f"{number + 1} requests: {memory[-1]:.1f} MiB", flush=True)
    spent = time.perf_counter() - start
    print(f"{arguments.requests} in a row, {arguments.requests / spent:.1f} a second: {dict(outcomes)}")
    if len(memory) > 3:
        third = len(memory) // 3
        growth = median(memory[-third:]) - median(memory[:third])
        print(f"growth from the first to the last third: {growth:+.1f} MiB")
    return 0 if set(outcomes) == {"good, right", "bad, refused"} else 1


def send(url: str, request: dict[str, Any]) -> tuple[int, Any]:
    """Posts a request; returns status and answer."""
    answer = requests.post(url, timeout=600, **request)
    try:
        return answer.status_code, answer.json()
    except json.JSONDecodeError:
        return answer.status_code, answer.text


def resident(pid: str) -> float:
    """Resident memory of a process in MiB."""
    lines = Path("/proc", pid, "status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS:")).split()[1]) / 1024


if __name__ == "__main__":
    sys.exit(main())
