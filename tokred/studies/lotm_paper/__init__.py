"""The LoTM paper's tables and figures, measured again and compared with the printed values.

Haroun, Martinet, Ben Chehida, Allenet: Leveraging local similarity for token merging in Vision Transformers,
ICONIP 2024 (hal-04781040). The configurations are in `tokred/configs/compare/`; `printed` contains the
printed values and their misprints, `join` joins them with measured rows, and `study` runs the measurements.
"""
