"""What is found out about a pair before it is run: once for calls that look alike.

Start with `layout`, a plain run that reads how the sites lie.

- `layout`: plates, and the sites that need the score function;
- `matching`: whether guide and model have the same latents, plates, families and dims;
- `tracking`: what each log-density depends on, followed through a run and tried by other draws;
- `broadcasting`: whether the programs take a particle axis;
- `cells`: whether the data keep apart, as what lists states relies on;
- `ways`: all ways through a program whose sites depend on its draws;
- `mixing`: plates whose cells are led by the draws of others, which share one weight;
- `owners`: whose draws each number is computed from, followed through operations;
- `layers`: the same, of those of networks and of matrices;
- `looking`: runs that only look, without gradient and with the generators as they were;
- `plain`: what a program is made of, where none of it asks the draws which way to go.
"""
