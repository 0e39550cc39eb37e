"""How a process that a test starts compiles its programs."""

import os
import re


def xla_flags(num_devices):
    """XLA_FLAGS for such a process: as quickly as here, with another number of fake devices."""
    return re.sub(r"(device_count=)\d+", rf"\g<1>{num_devices}", os.environ["XLA_FLAGS"])
