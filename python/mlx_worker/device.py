"""What MLX computes on here, and what memory that leaves: told without mlx-lm, in a moment."""
from pipe import Pipe  # First: it guards stdout.

pipe = Pipe()
try:
    import mlx.core as mx

    from hardware import device, free_memory, is_gpu
except Exception as error:
    pipe.send("error", id=None, message=f"this Python can't load mlx: {type(error).__name__}: {error}")
else:
    pipe.send("device", name=device(), gpu=is_gpu(), metal=mx.metal.is_available(), free=free_memory())
