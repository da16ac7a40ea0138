"""What is found out about a pair before it is run: once for calls that look alike.

Start with `layout`, a plain run that reads how the sites lie.

- `layout`: plates, and the sites that need the score function;
- `matching`: whether guide and model have the same latents, plates, families and dims;
- `broadcasting`: whether the programs take states that broadcast;
- `cells`: whether the data keep apart, as what lists states relies on;
- `mixing`: plates whose cells are led by the draws of others, which share one weight;
- `axes`: where the cells of a plate lie in what a traced program computes;
- `path`: which way programs go, by the operations of an abstract run;
- `stand_ins`: runs of a traced program, with other numbers for what has no value yet.
"""
