"""safetensors files, read to the device as fast as disk and bus allow.

Only `reader` and `sinks` import torch: the rest can work before it is there.
"""
