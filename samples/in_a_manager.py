"""Compress in a pipeline of OpenVINO's own passes.

    python samples/in_a_manager.py MODEL.xml OUT.xml

ConstantFolding runs after the compression here, and leaves the compressed weights compressed.
"""

import sys

import openvino as ov
from openvino.passes import ConstantFolding, Manager

from ov_weight_compression.passes import WeightCompression

source, target = sys.argv[1:3]
compression = WeightCompression(mode="int4_sym", group_size=64)
model = ov.Core().read_model(source)

manager = Manager()
manager.register_pass(compression)
manager.register_pass(ConstantFolding())
manager.run_passes(model)

print(compression.report)
ov.save_model(model, target)
