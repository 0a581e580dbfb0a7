"""The sentences of the needle task: facts about different modern things, each with a number."""

from __future__ import annotations

from dataclasses import dataclass

from ropewalk.errors import ArgumentError


@dataclass(frozen=True)
class NeedleKind:
    """One kind of needle.

    Args:
        subject: the noun that only this kind's sentence has; the key of its question.
        sentence: what is hidden, with {value} where the number goes.
        question: what is asked for the number.
    """

    subject: str
    sentence: str
    question: str

    def __post_init__(self) -> None:
        if self.sentence.count("{value}") != 1:
            raise ArgumentError("sentence", self.sentence, "must contain {value} exactly once")

    @property
    def answer_prefix(self) -> str:
        """What the reply is begun with: the sentence up to its value."""
        return self.sentence.partition("{value}")[0].rstrip()

    def told(self, value: str) -> str:
        """The sentence with its value."""
        return self.sentence.replace("{value}", value)


# Every subject is missing from the King James Bible, so a haystack of it has each only in its needle.
KINDS = (
    NeedleKind(
        "catamaran",
        "The catamaran at the north pier carries the hull number {value}.",
        "Which hull number does the catamaran at the north pier carry?",
    ),
    NeedleKind(
        "printer",
        "The page counter of the colour printer stands at {value}.",
        "At what does the page counter of the colour printer stand?",
    ),
    NeedleKind(
        "satellite",
        "Engineers track the weather satellite under the designation {value}.",
        "Under which designation do engineers track the weather satellite?",
    ),
    NeedleKind(
        "telephone",
        "To reach the dentist by telephone, dial {value}.",
        "What has to be dialled to reach the dentist by telephone?",
    ),
    NeedleKind(
        "locker",
        "The gym locker next to the showers opens with the combination {value}.",
        "Which combination opens the gym locker next to the showers?",
    ),
    NeedleKind(
        "tractor",
        "A farmer in the valley licensed his red tractor as vehicle {value}.",
        "As which vehicle did a farmer in the valley license his red tractor?",
    ),
    NeedleKind(
        "microscope",
        "Engraved on the base of the microscope is the serial number {value}.",
        "Which serial number is engraved on the base of the microscope?",
    ),
    NeedleKind(
        "passport",
        "Her new passport was issued as travel document {value}.",
        "As which travel document was her new passport issued?",
    ),
    NeedleKind(
        "elevator",
        "The hotel elevator passed its safety check with certificate {value}.",
        "With which certificate did the hotel elevator pass its safety check?",
    ),
    NeedleKind(
        "courier",
        "A courier is bringing the desk lamp under tracking number {value}.",
        "Under which tracking number is a courier bringing the desk lamp?",
    ),
    NeedleKind(
        "lottery",
        "This spring the lottery was won by ticket {value}.",
        "By which ticket was the lottery won this spring?",
    ),
    NeedleKind(
        "piano",
        "Under the lid of the piano its maker wrote {value}.",
        "What did its maker write under the lid of the piano?",
    ),
    NeedleKind(
        "camera",
        "The camera on the roof saved its last photo as file {value}.",
        "As which file did the camera on the roof save its last photo?",
    ),
    NeedleKind(
        "refrigerator",
        "The warranty claim for the broken refrigerator was registered as case {value}.",
        "As which case was the warranty claim for the broken refrigerator registered?",
    ),
    NeedleKind(
        "bicycle",
        "Police identified the stolen bicycle by its frame stamp {value}.",
        "By which frame stamp did police identify the stolen bicycle?",
    ),
    NeedleKind(
        "airline",
        "The airline confirmed our seats with booking reference {value}.",
        "With which booking reference did the airline confirm our seats?",
    ),
    NeedleKind(
        "volcano",
        "The number of tremors counted at the volcano last year is {value}.",
        "What is the number of tremors counted at the volcano last year?",
    ),
    NeedleKind(
        "asteroid",
        "Astronomers list the newest asteroid as minor planet {value}.",
        "As which minor planet do astronomers list the newest asteroid?",
    ),
    NeedleKind(
        "router",
        "Guests log on to the wireless router by typing {value}.",
        "What do guests type to log on to the wireless router?",
    ),
    NeedleKind(
        "museum",
        "In the catalogue of the museum the bronze mask is exhibit {value}.",
        "Which exhibit is the bronze mask in the catalogue of the museum?",
    ),
    NeedleKind(
        "radiologist",
        "The radiologist filed the picture of his knee under patient {value}.",
        "Under which patient did the radiologist file the picture of his knee?",
    ),
    NeedleKind(
        "telescope",
        "The price in dollars of the new telescope came to {value}.",
        "To what did the price in dollars of the new telescope come?",
    ),
    NeedleKind(
        "submarine",
        "On the radio the submarine answers to the call sign {value}.",
        "To which call sign does the submarine answer on the radio?",
    ),
    NeedleKind(
        "factory",
        "The factory recalled toys from production run {value}.",
        "From which production run did the factory recall toys?",
    ),
    NeedleKind(
        "restaurant",
        "The restaurant pays its taxes from bank account {value}.",
        "From which bank account does the restaurant pay its taxes?",
    ),
    NeedleKind(
        "helicopter",
        "Painted on the tail of the rescue helicopter are the digits {value}.",
        "Which digits are painted on the tail of the rescue helicopter?",
    ),
    NeedleKind(
        "laptop",
        "Someone turned in a silver laptop with an inventory sticker saying {value}.",
        "What does the inventory sticker on the silver laptop that someone turned in say?",
    ),
    NeedleKind(
        "vaccine",
        "Doctors gave the flu vaccine from lot {value}.",
        "From which lot did doctors give the flu vaccine?",
    ),
    NeedleKind(
        "thermostat",
        "A technician unlocks the thermostat by entering the PIN {value}.",
        "Which PIN does a technician enter to unlock the thermostat?",
    ),
    NeedleKind(
        "stadium",
        "Over the whole season the stadium counted visitors totalling {value}.",
        "What was the total of visitors that the stadium counted over the whole season?",
    ),
    NeedleKind(
        "robot",
        "The robot that welds car doors is known to its operators as unit {value}.",
        "As which unit is the robot that welds car doors known to its operators?",
    ),
    NeedleKind(
        "umbrella",
        "The lost property office tagged a green umbrella with {value}.",
        "With what did the lost property office tag a green umbrella?",
    ),
    NeedleKind(
        "chocolate",
        "The barcode on the dark chocolate reads {value}.",
        "What does the barcode on the dark chocolate read?",
    ),
    NeedleKind(
        "guitar",
        "At the auction the electric guitar was sold to bidder {value}.",
        "To which bidder was the electric guitar sold at the auction?",
    ),
    NeedleKind(
        "pharmacy",
        "The pharmacy fills the prescription against the voucher {value}.",
        "Against which voucher does the pharmacy fill the prescription?",
    ),
    NeedleKind(
        "dinosaur",
        "Scientists labelled the jaw of the dinosaur as specimen {value}.",
        "As which specimen did scientists label the jaw of the dinosaur?",
    ),
    NeedleKind(
        "insurance",
        "Fire damage to the garage is covered by insurance policy {value}.",
        "Which insurance policy covers fire damage to the garage?",
    ),
    NeedleKind(
        "battery",
        "A replacement battery for the scooter is sold as part {value}.",
        "As which part is a replacement battery for the scooter sold?",
    ),
    NeedleKind(
        "magazine",
        "Please renew the gardening magazine quoting subscriber {value}.",
        "Which subscriber has to be quoted to renew the gardening magazine?",
    ),
    NeedleKind(
        "antenna",
        "The broadcasting permit for the antenna was granted under docket {value}.",
        "Under which docket was the broadcasting permit for the antenna granted?",
    ),
    NeedleKind(
        "bulldozer",
        "Our bulldozer leaves the building site with odometer reading {value}.",
        "With which odometer reading does our bulldozer leave the building site?",
    ),
    NeedleKind(
        "glacier",
        "Drilling into the glacier brought up ice core {value}.",
        "Which ice core did drilling into the glacier bring up?",
    ),
    NeedleKind(
        "penguin",
        "Around its flipper the penguin wears a band marked {value}.",
        "How is the band marked that the penguin wears around its flipper?",
    ),
    NeedleKind(
        "kangaroo",
        "A vet implanted the kangaroo with microchip {value}.",
        "With which microchip did a vet implant the kangaroo?",
    ),
    NeedleKind(
        "sofa",
        "They delivered the leather sofa with invoice {value}.",
        "With which invoice did they deliver the leather sofa?",
    ),
    NeedleKind(
        "tomato",
        "Breeders entered the yellow tomato in the seed register as variety {value}.",
        "As which variety did breeders enter the yellow tomato in the seed register?",
    ),
    NeedleKind(
        "skyscraper",
        "Plans for the skyscraper were approved in city hall resolution {value}.",
        "In which city hall resolution were plans for the skyscraper approved?",
    ),
    NeedleKind(
        "astronaut",
        "Before docking the astronaut repeats the sequence {value}.",
        "Which sequence does the astronaut repeat before docking?",
    ),
    NeedleKind(
        "marathon",
        "First across the line in the marathon was the runner wearing bib {value}.",
        "Which bib was worn by the runner who was first across the line in the marathon?",
    ),
    NeedleKind(
        "container",
        "Crew members sealed the shipping container using lock {value}.",
        "Which lock did crew members use to seal the shipping container?",
    ),
)
