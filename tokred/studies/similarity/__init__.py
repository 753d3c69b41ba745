"""How similar tokens are, by how they lie to each other: the test of the premise of local merging, that neighbours are alike.

measured = Study(Config("deit_s", limit=200), layers=(1, 4)).run()
findings = premise.findings(measured)      # a row for each layer, sense of neighbourhood and kind of pairs
report.files(measured, findings)           # tables, histograms and figures, as files
"""
