"""How similar tokens are, by where they lie: a test of the premise of LoTM that neighbours are alike.

measurement = Study(Config("deit_s", limit=200), layers=(1, 4)).run()
findings = premise.findings(measurement)  # one row for each layer, sense of neighbourhood and kind of pairs
report.write(measurement, findings, Path("similarity"))
"""
