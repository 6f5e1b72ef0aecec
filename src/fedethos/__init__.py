"""fedethos: federated fine-tuning of transformers with differential privacy and global fairness evaluation.

The newcomer's path, one file at a time: ``README.md`` gives the commands, ``fedethos.cli`` reads them,
``fedethos.simulations`` runs a job on one machine, ``fedethos.server`` holds the round loop,
``fedethos.strategies`` the aggregation, ``fedethos.client`` the trainer, ``fedethos.privacy`` clipping, noise and accounting.

Importing this package asks the libraries below it not to call home, not to download or install anything, and not to spin.
A variable that the operator has already set stays as it is.
"""

import os

__version__ = "0.1.0"

QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "OMP_WAIT_POLICY": "PASSIVE",  # a busy core makes spinning threads several times slower than sleeping ones
}

for _name, _value in QUIET.items():
    os.environ.setdefault(_name, _value)
