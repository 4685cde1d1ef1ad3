"""Give particular layers something else than the rest, and read in the report what each one got.

    python samples/compress_with_rules.py MODEL.xml OUT.xml

The first rule whose pattern matches a layer's or a constant's name wins; None leaves a weight alone.
"""

import sys

import openvino as ov

from ov_weight_compression.passes import WeightCompression

source, target = sys.argv[1:3]
compression = WeightCompression(
    mode="int4_sym",
    group_size=64,
    rules=[
        ("*down_proj*", "int8_asym"),
        ("*v_proj*", {"mode": "int4_asym", "group_size": 32}),
        ("re:layers\\.0\\.", "int8_sym"),
    ],
)
model = ov.Core().read_model(source)
compression.run_on_model(model)
for row in compression.report.rows:
    print(f"{row.mode:10} {row.bits_per_weight:5.2f} bits  {row.consumer}")
for skip in compression.report.skips:
    print(f"{'left':10} {skip.bytes:>5} bytes {skip.name}: {skip.reason}")
ov.save_model(model, target)
