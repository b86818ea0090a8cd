"""Tasks for lmms-eval: YAML files beside the functions that they name. `fsr tasks FOLDER` makes a usable copy.

`include: lmms_eval/tasks/...` in the files stands for the installed lmms-eval; `fsr.evaluation.task_files` fills it in.
"""
