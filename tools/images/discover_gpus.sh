#!/bin/sh
# Spark's discovery script: the GPUs that this container was given, as a worker declares them to its master.
set -eu
addresses=$(nvidia-smi --query-gpu=index --format=csv,noheader | sed 's/.*/"&"/' | paste -s -d , -)
printf '{"name": "gpu", "addresses": [%s]}\n' "$addresses"
