"""How a process that a test starts compiles its programs."""

import os
import re


def xla_flags(num_devices, *, optimized=False):
    """XLA_FLAGS for such a process, with another number of fake devices.

    As quickly compiled as here, or optimized, for trainings that run longer than they compile.
    """
    count = f"--xla_force_host_platform_device_count={num_devices}"
    return count if optimized else re.sub(r"--\S*device_count=\d+", count, os.environ["XLA_FLAGS"])
