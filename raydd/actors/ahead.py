"""Work done before it is asked for, where networks train without a look at the synthetic set.

While one worker updates the images of step t, a second trains the network of step t + 1 on to step t + 2, and a third finds the real
targets of step t + 1. All of it is pure, so that the bits are those of doing one after another; what is not used is dropped.
"""

from dataclasses import dataclass, replace
from typing import Any

from raydd.types import Candidate, Network


@dataclass(frozen=True)
class Ahead:
    """What is known of the steps from that of `network` and `draws` on.

    following  the network after the training of this step, once known
    aimed      this network with its real targets in its memory, once known
    """

    network: Network
    draws: Any
    following: Network | None = None
    aimed: Network | None = None

    def fits(self, network: Network, draws: Any) -> bool:
        """Whether this is about that network and step."""
        return self.network is network and self.draws.key == draws.key

    def candidate(self, candidate: Candidate) -> Candidate:
        """The candidate with what is known of it."""
        return candidate if self.aimed is None else replace(candidate, network=self.aimed)

    def requests(self, candidate: Candidate, targets: bool) -> list[tuple[str, Candidate, Any]]:
        """(method, candidate, draws) of what may be done beside the update; with `targets` the real targets of the next step too."""
        if self.following is None:
            return [("advance", replace(candidate, network=self.network), self.draws)]
        # Within a lifetime the next step has one candidate, which is the first.
        coming, draws = replace(candidate, index=0, network=self.following), self.draws.next()
        return [("advance", coming, draws), *([("target", coming, draws)] if targets else [])]

    def answered(self, networks: list[Network]) -> tuple["Ahead", "Ahead | None"]:
        """(this with its following network, the same of the next step) once the requests have these answers."""
        if self.following is None:
            return replace(self, following=networks[0]), None
        return self, Ahead(self.following, self.draws.next(), networks[0], networks[1] if len(networks) > 1 else None)
