"""What lies between the matrix products of a dense block, each in one pass over its memory; PyTorch's own elsewhere.

`choose` hands out the functions, `twins` has them in plain PyTorch, `launch` has them through the kernels of
`triton_kernels`, and `build` compiles those before there is a GPU.
"""
