"""The similarity of tokens by their positions: a test of LoTM's premise that neighbours are similar.

measurement = Study(Config("deit_s", limit=200), layers=(1, 4)).run()
findings = premise.findings(measurement)  # one row for each layer, sense of neighbourhood and kind of pairs
report.write(measurement, findings, Path("similarity"))
"""
