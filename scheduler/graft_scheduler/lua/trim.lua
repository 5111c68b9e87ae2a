-- Take out of the record what only a name kept there that has been moved to another job's.
-- ARGV: job
if redis.call('EXISTS', JOB) == 1 then
  keep_checkpoints(ARGV[1], read_list('checkpoints'))
end
return 1
