"""Programs that run otherwise than they are written, for one purpose each.

- `vectors`: a model gets the vectors of codes in place of the codes (`VQ_ELBO`);
- `relaxing`: draws have a gradient (`relax`);
- `slopes`: whether what is computed from such draws keeps it (`relax`);
- `without_rows`: where a plate has none, or a site has no draws (every run);
- `in_place`: whether what a site holds is changed behind it (every run);
- `rows`: whether the data are those of the rows that plates draw (guides of each datum's own);
- `subsamples`: rows that plates have drawn, in other runs (particles one by one, diagnostics);
- `batches`: whether parameters are of the rows of the data, not of places in a batch (`fit`);
- `swapping`: a model runs as a guide of its discrete latents (`AutoDiscrete`);
- `elsewhere`: at other parameters than its own, to see what holds at all of them (`AutoDiscrete`);
- `paths`: all ways of a program whose sites depend on what it draws (diagnostics);
- `parameters`: at parameters that are given, those that modules hold included (diagnostics).

The handler that draws particles, which every run has, is `programs.draw`.
"""
