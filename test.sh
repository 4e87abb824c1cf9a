#!/usr/bin/env bash
# Set up, lint and test: bash test.sh [pytest arguments]
set -euo pipefail
cd "$(dirname "$0")"
source ./setup.sh
setup requirements.txt requirements-dev.txt requirements-deploy.txt
ruff check .
ruff format --check .
python -m pytest "$@"
