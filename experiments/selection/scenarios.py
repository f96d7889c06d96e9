"""The worlds in which rules are tried: what differs from the default one."""

from __future__ import annotations

from dataclasses import dataclass

# What a client has trained after the default run's three rounds.
STEPS = 450


@dataclass(frozen=True, slots=True)
class Scenario:
    """What differs from the default world."""

    name: str
    steps: tuple[int, ...] = (STEPS,) * 4  # local training steps of each client
    private_noise: tuple[float, ...] = ()  # shares of each one's answers that are random
    public_noise: float = 0.0  # share of the public answers that are random
    server_domains: tuple[str, ...] = ()  # that the server's adapter was trained on beforehand
    server_steps: int = 4 * STEPS  # for so many steps
    joins: tuple[int, ...] = ()  # each client's first round; empty for all in the first
    rounds: int = 2  # of selection and distillation
    overlap: bool = False  # the first two clients have half of each other's samples beside theirs
    seeds: int = 3  # of those given, the first so many
    untested: str = ""  # domain neither public nor tested; its clients can only disturb
    trec: bool = False  # real questions: a client has two of six classes; needs the material

    @property
    def clients(self) -> int:
        """Number of clients K."""
        return len(self.steps)

    def noise_of(self, client: int) -> float:
        """Share of a client's private answers that are random."""
        return self.private_noise[client] if self.private_noise else 0.0

    def present(self, client: int, number: int) -> bool:
        """Whether a client takes part in a round, counted from 1."""
        return not self.joins or self.joins[client] <= number


SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        Scenario("default", seeds=5),
        Scenario("label-noise", public_noise=0.4, seeds=5),
        # A good client, two of little training, and one whose private labels are mostly wrong.
        Scenario("unequal", steps=(450, 100, 30, 450), private_noise=(0.0, 0.0, 0.0, 0.7)),
        # The server knows two domains better than the clients that hold them.
        Scenario(
            "expert-server",
            steps=(450, 450, 30, 30),
            server_domains=("court", "workshop"),
            seeds=5,
        ),
        # Eight clients, two to a domain, every second one barely trained.
        Scenario("twins", steps=(450,) * 4 + (60,) * 4),
        Scenario("overlap", overlap=True),
        Scenario("untested", untested="workshop"),
        Scenario("late", joins=(1, 1, 1, 3), rounds=3),
        Scenario("thirty-two", steps=(450,) * 4 + (120,) * 4 + (60,) * 8 + (30,) * 16),
        Scenario("trec", steps=(300,) * 3, trec=True, seeds=5),
    )
}
