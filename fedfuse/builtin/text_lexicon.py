"""Words of the built-in world: four domains, each with its own things and its own answers.

A domain's sentence is ``<when>, <frame around the entity>`` followed by the answer. The grammar
(``WHEN`` and the shape of a frame) is shared, the words are the domain's own. Plain data, no logic.
"""

from __future__ import annotations

from dataclasses import dataclass

DAYS = tuple("monday tuesday wednesday thursday friday saturday sunday".split())
MONTHS = tuple(
    "january february march april may june july august september october november december".split()
)
PLACES = tuple(
    "aston bexley camden dover epsom fulham grantham harlow ilford jarrow kendal luton".split()
)
# Two colours are the shelf mark of a word: facts that every base model knows; see
# text_world.pretraining_text.
COLOURS = tuple(
    """amber azure beige black brown coral crimson ebony emerald golden green indigo ivory khaki
    lilac maroon ochre olive orange purple scarlet teal violet white""".split()
)
SHELVE = ("the {place} archive filed {word} under", " {first} {second}.")
FETCH = ("the {place} archive took from {first} {second}", " {word}.")


@dataclass(frozen=True, slots=True)
class Lexicon:
    """The vocabulary of one domain.

    Attributes:
        name: name of the domain.
        frames: prompt templates with ``{place}`` and ``{entity}``.
        entities: subjects of sentences.
        answers: answers about them.
    """

    name: str
    frames: tuple[str, ...]
    entities: tuple[str, ...]
    answers: tuple[str, ...]


def _lexicon(name: str, frames: str, entities: str, answers: str) -> Lexicon:
    """Make a lexicon of frames, one a line, and of lists of words."""
    lines = tuple(line.strip() for line in frames.splitlines())
    return Lexicon(name, lines, tuple(entities.split()), tuple(answers.split()))


LEXICONS = (
    _lexicon(
        "clinic",
        """the {place} clinic saw a patient with {entity} and prescribed
        a nurse from {place} noted {entity} and gave
        the ward at {place} treats {entity} with
        for {entity} the doctor in {place} chose""",
        """asthma gout eczema anemia migraine sepsis angina colitis sciatica psoriasis vertigo
        insomnia tinnitus bronchitis hepatitis gastritis cystitis dermatitis arthritis
        tonsillitis sinusitis pneumonia malaria measles mumps rabies tetanus cholera typhoid
        shingles""",
        """aspirin insulin morphine heparin codeine statins zinc iodine quinine digoxin lithium
        warfarin steroids penicillin metformin naproxen""",
    ),
    _lexicon(
        "bank",
        """the {place} branch advised a client holding {entity} to buy
        a trader from {place} saw {entity} and sold
        the desk at {place} hedges {entity} with
        for {entity} the fund in {place} prefers""",
        """copper cocoa cotton wheat barley sugar coffee nickel cobalt silver platinum uranium
        crude diesel propane ethanol lumber rubber cattle soybeans oats rice palladium tin lead
        corn canola wool butter cheese""",
        """futures options swaps bonds gilts shares notes warrants forwards collars straddles
        annuities treasuries debentures deposits pledges""",
    ),
    _lexicon(
        "court",
        """the {place} court heard a case of {entity} and ordered
        a judge from {place} weighed {entity} and granted
        the bench at {place} answers {entity} with
        for {entity} the jury in {place} proposed""",
        """theft fraud arson libel slander assault trespass perjury bribery forgery burglary
        nuisance negligence piracy usury extortion smuggling vandalism stalking looting bigamy
        treason contempt mutiny poaching squatting eviction defamation conversion battery""",
        """probation damages custody parole restitution bail prison acquittal dismissal mediation
        injunction forfeiture community fines surrender disclosure""",
    ),
    _lexicon(
        "workshop",
        """the {place} garage opened a worn {entity} and fitted
        a mechanic from {place} checked the {entity} and used
        the shop at {place} mends every {entity} with
        for the {entity} the fitter in {place} needed""",
        """gearbox clutch piston radiator alternator gasket camshaft flywheel carburettor axle
        brake bearing manifold crankshaft muffler throttle injector turbine compressor pulley
        winch chassis fender differential thermostat dynamo impeller sprocket ratchet spindle""",
        """grease solder rivets washers bolts epoxy shims pliers spanners clamps sealant bushings
        springs sandpaper welding filler""",
    ),
)
