-- ARGV: 8 session.

local s = session(ARGV[8])
if s then
    end_session(ARGV[8], s.node)
    sessions[ARGV[8]] = false
    hint('*')
end
return { 'CLOSED', finish() }
