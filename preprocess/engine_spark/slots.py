"""Where Spark's records, which all have the same width, hold bags of ids.

A table with bags has `max_ids` slots in each record, of which a bag fills the first; where it has
weights, as many words follow the dense columns. Spark compresses empty slots wherever it stores or
sends rows. A record is the label, the dense columns, the weights and the slots of all tables.
"""

from __future__ import annotations

from dlrm.formats.bags import BagTable
from preprocess.options import Options


class Slots:
    """The columns of records.

    Args:
        options: The options of the run.

    Attributes:
        floats: Number of dense columns and words of weights.
        count: Number of slots of all tables.
        text: Java's description of the tables: the slots of each that has bags, 0 for the others.
    """

    def __init__(self, options: Options) -> None:
        bags = options.bags
        self.floats = options.num_dense + sum(bag.max_ids for bag in bags if bag.weights)
        self.count = options.num_single + sum(bag.max_ids for bag in bags)
        sizes = [*[0] * options.num_single, *(bag.max_ids for bag in bags)]
        self.text = " ".join(map(str, sizes))
        self._options = options

    @property
    def width(self) -> int:
        """Number of words of a record."""
        return 1 + self.floats + self.count

    def column(self, column: int) -> int:
        """Returns the column of a record whose column without bags is given."""
        weights = self.floats - self._options.num_dense
        return column + (weights if column > self._options.num_dense else 0)

    def first_slot(self, table: int) -> int:
        """Returns the number of the first slot of a table among all slots."""
        bags = [bag for bag in self._options.bags if bag.table < table]
        return table - len(bags) + sum(bag.max_ids for bag in bags)

    def ids(self, bag: BagTable) -> int:
        """Returns the column of the first id of a bag."""
        return 1 + self.floats + self.first_slot(bag.table)

    def weights(self, bag: BagTable) -> int:
        """Returns the column of the first weight of a bag."""
        before = (other for other in self._options.bags if other.table < bag.table)
        return 1 + self._options.num_dense + sum(b.max_ids for b in before if b.weights)
