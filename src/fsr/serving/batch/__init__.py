"""`fsr batch`: many pictures and questions through a pool of workers, over Ray Data; answers as a folder of Parquet.

- **A row** is known by its id (see `inputs`), **a batch** by the ids of its rows. The worker that answered a
  batch writes it as one Parquet part itself, atomically, under a name made from those ids (see `results`).
- **A worker that dies** is started again by Ray, and its unfinished batch is asked again; one whose part is there is
  not. A batch that was given up by `RETRIES` more dying workers stops the job.
- **A run that was stopped**, at any moment and by anything, is continued by the same command: it reads the ids of all
  parts and asks only the other rows. Other settings, or another input, are refused. Rows may be added to an input.
- **At the end** the parts are read again and compared with the input: every row once, or an error.
- **A bad row** is a row with its `error`; it counts as tried and is not asked again (see `worker` for what is bad
  and what stops the job).

The same code runs on the cluster at `address`: every machine needs this package, and must see the input, the output and
the model under the same paths. With GPUs in the cluster (or in this machine) each worker gets one.

| file | idea |
|---|---|
| `inputs` | a folder, JSONL or Parquet as rows with ids that stay |
| `job` | what decides an answer, kept beside the answers |
| `pictures` | opening them, in the workers |
| `worker` | model and method, loaded once; a batch answered and written |
| `results` | parts: written whole, read again |
| `pool` | the workers, over Ray Data |
"""
