"""The paper's tables and figures: which trainings fill them, run what is missing, write what was measured."""
