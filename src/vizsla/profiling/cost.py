"""What a run cost: energy, and money where there is a price."""

from __future__ import annotations

from vizsla.profiling.clock import RunClock
from vizsla.profiling.energy import Energy, cost_of, energy_of
from vizsla.profiling.recorded import Profile
from vizsla.words import duration

_NO_PRICE = "Give a price an hour to see what it cost: vizsla report RUN --price 1.2"


def energy_words(profile: Profile) -> str:
    """Kilowatt hours, and in a word how they are known."""
    energy = energy_of(profile)
    if energy is None:
        return "not known: no machine was sampled"
    return f"{kwh(energy)} ({how_known(energy)})"


def kwh(energy: Energy) -> str:
    """Kilowatt hours with their unit, or watt hours where they are few."""
    return f"{energy.kwh:.3g} kWh" if energy.kwh >= 0.001 else f"{1000 * energy.kwh:.3g} Wh"


def how_known(energy: Energy) -> str:
    """Measured, or how much of it is not."""
    if energy.measured >= 0.999:
        return "measured"
    return "partly estimated" if energy.measured else "estimated"


def cost_words(profile: Profile, clock: RunClock, price: float | None) -> str:
    """Energy and money in sentences."""
    energy = energy_of(profile)
    words = f"Energy: {energy_words(profile)}."
    if energy is not None:
        words = f"{words[:-1]} in {duration(energy.seconds)}. {energy.how}"
    if price is None:
        return f"{words}\n{_NO_PRICE}"
    return f"{words}\nMoney: {' '.join(money(clock, profile, price))}."


def money(clock: RunClock, profile: Profile, price: float) -> tuple[str, str]:
    """The price of the run's time, and what it is of; each of several machines has its own."""
    machines = max(1, len(profile.nodes))
    each = f" for each of {machines} machines" if machines > 1 else ""
    whole = cost_of(clock.total * machines, price)
    return f"{whole:,.3g}", f"at {price:g} an hour{each}"
