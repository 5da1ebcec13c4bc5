"""Random small DiTs through the backend: every number right, every site accounted for, nothing dense in silence.

python -m tests.fuzz --count 2000 --seed 0 --jobs 2     a run; exits with 1 if anything failed
python -m tests.fuzz --only 17 --shrink                 one configuration, and the plainest that fails like it
"""
