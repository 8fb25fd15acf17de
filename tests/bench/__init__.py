"""The benchmark: mail through a gateway, with nothing, the least possible, and real inspectors in its way.

load      what is sent, and how its rate is measured: a scenario of the report
system    what stands in the gateway's path meanwhile
run       one load against one system; a round is one run of each system, in turn
sample    what one run measured; the report tells the median of a system's samples

bench takes the rounds; loads, systems, programs, machine and report are what their names say.
"""
