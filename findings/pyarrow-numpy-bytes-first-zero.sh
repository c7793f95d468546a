#!/usr/bin/env bash
# pyarrow 26.0.1, NumPy 2.4.6: an array of bytes is cut at the first zero of each value.
#
# Guess before running: NumPy's dtype S pads values with zeros and drops only those at the end, so an array of PNG files keeps every
# byte (a PNG file ends in 0x82), and pa.array of it has the same values.
# Seen: NumPy gives back all 16 bytes, but pa.array keeps those before the first zero, 8 of a PNG file, without a warning. The same
# bytes from a list or from an array of dtype object are complete. It also happens where NumPy arrays become Arrow columns on the way:
# pa.table, and the dicts of arrays that Ray Data's map_batches may return.
# Return bytes in lists, in arrays of dtype object, or as pa.array(values, pa.binary()).
#
# Needs Python 3.11 or newer and a network. Exits with 1 if the behaviour has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" -q --disable-pip-version-check install pyarrow==26.0.1 numpy==2.4.6
cat > "$work/cut.py" <<'PYTHON'
import numpy as np
import pyarrow as pa

png = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"
array = np.array([png])
print("NumPy:", array.dtype, len(array[0]))
print("pa.array:", len(pa.array(array)[0].as_py()))
print("pa.table:", len(pa.table({"png": array})["png"][0].as_py()))
print("list:", len(pa.array([png])[0].as_py()))
print("object:", len(pa.array(np.array([png], dtype=object))[0].as_py()))
PYTHON
out=$("$work/venv/bin/python" "$work/cut.py")
printf '%s\n' "$out"
[ "$out" = "NumPy: |S16 16
pa.array: 8
pa.table: 8
list: 16
object: 16" ]
