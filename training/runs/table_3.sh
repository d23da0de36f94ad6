#!/usr/bin/env bash
# Table 3's point: planning once at low resolution against the symmetric model and against planning at every step. For docs/results/table_3.md.
# Seconds and memory at our size, measured on this machine's CPU with one thread; operations and memory of the paper's sizes, counted. What is there is not done again.
# Beside them stand the ratios of another machine, where the same was run: BESIDE="AMD=outputs/results/table-3-amd" bash training/runs/table_3.sh
set -euo pipefail
PYTHON="${PYTHON:-.venv/bin/python}"
OUT="${OUT:-outputs/results/table-3}"
export OMP_NUM_THREADS=1
asymmetry() {  # name of the result, and further options
    [ -f "$OUT/$1.json" ] || "$PYTHON" -m benchmarks.asymmetry -o "$OUT/$1.json" "${@:2}"
}
asymmetry timed-64 --presets --timed-size 64 --repeats 10
asymmetry timed-256 --presets --timed-size 256 --repeats 2
asymmetry memory-64 --presets --no-timing --memory --timed-size 64
asymmetry memory-256 --presets --no-timing --memory --timed-size 256
asymmetry counted-tiny --no-timing --presets mardini-tiny --sizes 64 256
asymmetry counted --no-timing
read -ra beside <<< "${BESIDE:-}"
PAGE="${PAGE-docs/results/table_3.md}"
"$PYTHON" -m training.reproduction.table_3 "$OUT" ${beside[@]+--beside "${beside[@]}"} ${PAGE:+--page "$PAGE"}
