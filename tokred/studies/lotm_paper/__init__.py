"""The reference paper's tables and figures, measured again beside what it prints.

Haroun, Martinet, Ben Chehida, Allenet: Leveraging local similarity for token merging in Vision Transformers, ICONIP 2024 (hal-04781040).
`printed` holds its figures and their misprints, `lines` sets them beside measured ones, `study` measures.
"""
