"""Run any model and guide, and say in arrays what happened: the only room that meets traces.

Read it in this order, from a program to arrays:

- `sites`: one typed view of a sample site, made once from NumPyro's message;
- `pair`: a model and its guide, how their sites lie, how they are run; what a run left;
- `draw`: the handler that draws or takes values, and what runs a program;
- `layout`, `computing`: a plain run that finds out how the sites of a pair lie;
- `masks`: where a mask is; `record` leaves out of each sum what it hides;
- `densities`: log-densities of many states at once;
- `record`: log-densities by particle and datum, the record that every algorithm takes;
- `enumerating`, `contracting`: marked sites of a model, summed out of its run; `agreeing`: whether
  it then depends on what it depends on with one of each of their values;
- `run`: particles of a pair, at once or one by one; dreams;
- `planning`: what is known of a call that looks like an earlier one; `asking`: what is not;
- `codes`: the discrete latents of a datum as one row of codes, and all states of these;
- `vectors`, `relaxing`: programs that see the vectors of codes, or relaxed draws;
- `swapping`: a model run as a guide of its discrete latents;
- `statistics`: what the closed form of a parameter needs of a run;
- `precision`: what mean square error costs in nats, to weigh other squares by.

It imports `ops` and `distributions`. Its words:

- *site*: a `numpyro.sample` statement as a run left it; *deterministic* ones are not among them;
- *datum*: a cell of the plates that all sites without a pathwise gradient share;
- *owned*: under the plates of a datum; *shared*: by the data, outside of them;
- *pair*: a model and its guide; two draws that belong together are an *antithetic pair*;
- *particle*: one joint draw of all latents; K of them lead, left of all plates;
- *credited*: drawn without a pathwise gradient, so that the score function credits the draw with
  what it leads to; a *score* alone is a number in nats, as in `ops`;
- *reader*: what an algorithm reads of a run beside its log-densities, into `Particles.extras`.
"""
