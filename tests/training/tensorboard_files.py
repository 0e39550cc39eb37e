"""What TensorBoard would read of event files."""

import struct

from tensorboardX.proto.event_pb2 import Event


def events(directory):
    """(step, tag, value) of every complete record in every event file, as TensorBoard reads it."""
    found = []
    for path in sorted(directory.glob("events.out.tfevents.*")):
        data, offset = path.read_bytes(), 0
        while offset + 12 <= len(data):
            (length,) = struct.unpack_from("<Q", data, offset)
            event = Event.FromString(data[offset + 12 : offset + 12 + length])
            found += [(event.step, value.tag, value) for value in event.summary.value]
            offset += 16 + length
    return found
