"""Tasks that models are trained on, one file each; `sequence_tasks()` has them by name."""

from ropewalk.training.tasks.base import SequenceTask, sequence_tasks
from ropewalk.training.tasks.chorales import Chorales
from ropewalk.training.tasks.genome import Genome
from ropewalk.training.tasks.indexing import IndirectIndexing
from ropewalk.training.tasks.language import Language
from ropewalk.training.tasks.midi import Midi
from ropewalk.training.tasks.probes import Copying, Induction, VariableTracking

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
