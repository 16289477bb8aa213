"""What a run needs in memory, said before anything is loaded (docs/memory.md).

A run's own networks are made of tensors without data (`weightless`), and go through a mini-batch, a scoring pass and a step of
decoding while every allocation is counted (`meter`, `passes`): so the plan cannot say another thing than the code does. What
is a matter of counting only has formulas (`formulas`). `plan` puts it together, `remedies` looks for what would make it fit.
"""
