"""Marked sites of a model (``infer={"enumerate": "parallel"}``), summed out of its run.

- `enumerating`: gives a marked site all its values, and hands the sum on as one site;
- `contracting`: the sum itself, by Pyro's contraction of tensors;
- `scales`: what multiplies the logarithm of the sum;
- `values`: how probable the values of a summed site are, given draws and data;
- `agreeing`: whether the model then says what it says of each of the values.
"""
