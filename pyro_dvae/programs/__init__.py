"""Run any model and guide, and say in arrays what happened: the only room that meets traces.

The files of the room are the way from a program to arrays. Read them in this order:

- `sites`: one typed view of a sample site, made once from Pyro's message; a pair of model and
  guide, how its sites lie, and what a run of it left;
- `messages`: what no site tells: rows of plates, and values by name;
- `draw`: the handler that draws all particles at once or takes values, and what runs a program;
- `run`: particles of a pair, at once or one by one; dreams;
- `plans`: whether a call is like one before, so that its structure is known;
- `settings`: plain values around a program, which may choose how it goes;
- `record`: log-densities by particle and datum, the record that every algorithm takes;
- `densities`: where a mask is; log-densities of many states at once, and entropies;
- `supports`: the values of a discrete site, where all data have the same;
- `codes`: the discrete latents of a datum as one row of codes, and all states of these;
- `processes`: programs of which each process runs some rows;

The folders hold what is beside that way, and say so in their first lines:

- `structure`: what is found out about a pair before it is run, `structure.layout` first;
- `summing`: marked sites of a model, summed out of its run;
- `readers`: what some algorithms read of a run beside its log-densities;
- `handlers`: programs that run otherwise than they are written, for one purpose each;

A handler's mask is applied in one place, `Site.scaled`, on the way to the sums of `record.Ledger`,
and to what diagnostics read of a site. A distribution's own is applied by its `log_prob`, and by
`densities` where that is taken apart: by entry, by cell, or for an entropy. Who only asks where
a mask is asks `densities` (`entry_mask`, `is_masked`, `without_mask`); `draw`, `handlers.relaxing`
and `readers.impossible` alone open masked distributions beside it, to make the like of them or to
look within. Draws are never masked (`record.draw_log_prob`).

It imports `ops` and `distributions`. Its words:

- *site*: a `pyro.sample` statement as a run left it; *deterministic* ones are not among them;
- *datum*: a cell of the plates that all sites without a pathwise gradient share;
- *owned*: under the plates of a datum; *shared*: by the data, outside of them;
- *pair*: a model and its guide; two draws that belong together are an *antithetic pair*;
- *particle*: one joint draw of all latents; K of them lead, left of all plates;
- *credited*: drawn without a pathwise gradient, so that the score function credits the draw with
  what it leads to; a *score* alone is a number in nats, as in `ops`;
- *plate of data*: one whose size goes with the rows of the arguments; processes *share* a batch by
  its rows;
- *reader*: what an algorithm reads of a run beside its log-densities, into `Particles.extras`.
"""
