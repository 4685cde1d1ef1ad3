"""Choose formats for a size, with the probes on the workers of a dask cluster.

    python probe_on_a_cluster.py model/openvino_model.xml tokens.npy 2.5GB small/openvino_model.xml

Any executor of `concurrent.futures` does. A cluster over several machines needs a temporary folder that all of them see
(`TMPDIR`): workers get names of files, not models.
"""

import sys

import numpy as np
import openvino as ov
from dask.distributed import Client, LocalCluster

from ov_weight_compression.passes import apply_weight_compression, report_of, save_model


def main() -> None:
    source, tokens, size, target = sys.argv[1:]
    with LocalCluster(n_workers=2) as cluster, Client(cluster) as client:
        model = apply_weight_compression(
            ov.Core().read_model(source),
            target_size=size,
            dataset=np.load(tokens),
            executor=client.get_executor(),
        )
        save_model(model, target)
    print(report_of(model).budget)


if __name__ == "__main__":  # workers are processes that import this file
    main()
