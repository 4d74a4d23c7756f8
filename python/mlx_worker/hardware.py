"""What computes."""
import platform

import mlx.core as mx


def is_gpu():
    return mx.default_device().type != mx.DeviceType.cpu


def device():
    """Its name."""
    if not is_gpu():
        return f"cpu {platform.machine()}"
    return str(mx.device_info().get("device_name", "gpu"))


def free_memory():
    """Bytes that a GPU lets a model have; None where it is the machine's memory alone that bounds it, or nobody
    tells."""
    if not is_gpu():
        return None
    info = mx.device_info()
    return info.get("max_recommended_working_set_size") or info.get("free_memory") or info.get("total_memory")
