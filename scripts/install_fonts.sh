#!/usr/bin/env bash
# Installs the recommended fonts: Debian's packages (as root), then npm's @fontsource packages where npm exists.
#
#   scripts/install_fonts.sh [--web FOLDER] [SCRIPT ...]
#
# SCRIPT is a list of scripts/fonts, such as indic; without one: arabic indic latin. Web fonts go to FOLDER, fontsource
# in the user's data folder by default. Packages that this system does not have are named and left out.
set -euo pipefail
[[ ${1:-} != --help ]] || { sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0"; exit; }
lists="$(cd "$(dirname "$0")" && pwd)/fonts"
web="${XDG_DATA_HOME:-$HOME/.local/share}/fontsource"
if [[ ${1:-} == --web ]]; then
  web=${2:?--web: name a folder}
  shift 2
fi
scripts=("$@")
[[ $# -gt 0 ]] || scripts=(arabic indic latin)
for script in "${scripts[@]}"; do
  if [[ ! -f $lists/$script.txt ]]; then
    echo "no list of fonts for $script: use one of $(cd "$lists" && echo *.txt | sed 's/\.txt//g')" >&2
    exit 2
  fi
done

if command -v apt-get >/dev/null; then
  [[ -n $(apt-cache pkgnames fonts-noto-core) ]] || apt-get update -q
  wanted=$(for script in "${scripts[@]}"; do cat "$lists/$script.txt"; echo; done | sed '/^$/d' | sort -u)
  known=$(comm -12 <(echo "$wanted") <(apt-cache pkgnames | sort))
  missing=$(comm -23 <(echo "$wanted") <(echo "$known"))
  [[ -z $missing ]] || echo "not in this system's package lists, left out:" $missing >&2
  # shellcheck disable=SC2086
  DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends $known
else
  echo "no apt-get here: install the packages of $lists by hand" >&2
fi

if command -v npm >/dev/null; then
  mkdir -p "$web"
  cp "$lists/package.json" "$web"
  npm install --prefix "$web" --ignore-scripts --no-audit --no-fund --loglevel=error
  echo "web fonts are in $web: name it wherever fonts are asked for, such as --fonts $web"
else
  echo "no npm here: the web fonts are left out" >&2
fi
