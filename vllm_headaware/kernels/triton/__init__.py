"""The kernels in Triton: one stem for each operation, with the meaning of kernels/reference.py.

    store     rotate, round and pack K and V of a step's tokens into their blocks; rotate and round
              queries that meet quantised keys
    work      once a step, for all layers: which pieces of which requests there are to attend to
    decode    one query a request, piece by piece
    merge     the pieces of a request put together, and rotated back
    prefill   several queries a request

A block holds, for each KV head, rows of K, then rows of V, then scales (int8: of K, of V; int4: and
lowest values of K, of V), a number of each for every token of the block. An int4 row is half as
many bytes: byte j holds element j in its low and element j + head_size / 2 in its high half.
"""
