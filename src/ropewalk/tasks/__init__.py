"""Tasks that tell how far a model reads, one file each; `sequence_tasks()` has those that models are trained on."""

from ropewalk.tasks.chorales import Chorales
from ropewalk.tasks.genome import Genome
from ropewalk.tasks.indexing import IndirectIndexing
from ropewalk.tasks.language import Language
from ropewalk.tasks.midi import Midi
from ropewalk.tasks.probes import Copying, Induction, VariableTracking
from ropewalk.tasks.sequences import SequenceTask, sequence_tasks

__all__ = [
    "Chorales",
    "Copying",
    "Genome",
    "IndirectIndexing",
    "Induction",
    "Language",
    "Midi",
    "SequenceTask",
    "VariableTracking",
    "sequence_tasks",
]
