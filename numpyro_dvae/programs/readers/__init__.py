"""What some algorithms read of a run beside its log-densities, into `Particles.extras`.

A reader is a function from (run, layout, K) to arrays; those that one algorithm alone wants are in
its own file of `infer`, and `record.read_silenced` and `codes.read_codes` beside what they read.

- `credit`: what the draw of each site can influence;
- `precision`: what mean square error costs in nats, to weigh other squares by;
- `impossible`: latents that the guide never draws.
"""
