"""The reference paper's tables and figures, measured again beside what it prints.

Haroun, Martinet, Ben Chehida, Allenet: Leveraging local similarity for token merging in Vision Transformers,
ICONIP 2024 (hal-04781040). What is compared is in `tokred/configs/compare/`; `printed` holds the paper's
figures and their misprints, `join` sets them beside measured rows, `study` measures.
"""
