import io
import json

from mstr_hf.training.log import RunLog


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_bar_moves_with_each_step_and_says_what_the_last_stretch_was_like(tmp_path, monkeypatch, capsys):
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setattr("tqdm.std.tqdm.monitor_interval", 0)
    log = RunLog(tmp_path, True, 3, 10)
    log._bar.mininterval = 0
    log.progress(4)
    assert " 4/10 " in terminal.getvalue().split("\r")[-1]
    log.step(5, loss=2.0, learning_rate=1e-3, grad_norm=1.0, images_per_s=99.6, data_wait=0.016, eta_s=3725)
    log.progress(5)
    log.close()
    assert " 5/10 " in terminal.getvalue() and "100 images/s  data wait 1.6%  ETA 1:02:05" in terminal.getvalue()
    assert "step 5  loss 2.0000  100 images/s" in capsys.readouterr().out
    assert json.loads((tmp_path / "log.jsonl").read_text())["data_wait"] == 0.016


def test_without_a_terminal_there_is_no_bar(tmp_path, monkeypatch):
    terminal = io.StringIO()
    monkeypatch.setattr("sys.stderr", terminal)
    log = RunLog(tmp_path, True, 0, 2)
    log.progress(1)
    log.close()
    assert terminal.getvalue() == ""


def test_other_processes_say_nothing(tmp_path, capsys):
    log = RunLog(tmp_path / "run", False, 0, 2)
    log.progress(1)
    log.step(1, loss=1.0, learning_rate=1.0, grad_norm=1.0, images_per_s=1.0, data_wait=0.0, eta_s=1.0)
    log.evaluation(1, {"wrr": 1.0})
    log.close()
    assert capsys.readouterr().out == "" and not (tmp_path / "run").exists()
