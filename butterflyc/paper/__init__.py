"""The papers' tables and figures: as printed, as their formulas give, and as measured."""
