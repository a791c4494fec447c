"""Densities of tables whose columns are of several kinds: numbers, categories, atoms and gaps."""

from cnf.tables.building import table_model
from cnf.tables.categories import Categories
from cnf.tables.columns import Column
from cnf.tables.contexts import context_row
from cnf.tables.table_density import TableDensity

__all__ = ["Categories", "Column", "TableDensity", "context_row", "table_model"]
