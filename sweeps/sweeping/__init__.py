"""What the sweep scripts share: a question with its arms, the command line, trials under Ray Tune, and what came of them.

A script says which arms there are (`Question`) and calls `main`.
"""

from sweeping.arguments import Options, main
from sweeping.question import Arm, Question, grid

__all__ = ["Arm", "Options", "Question", "grid", "main"]
