-- ARGV: 9 session.

local s = session(ARGV[9])
if s then
    end_session(ARGV[9], s.node)
    sessions[ARGV[9]] = false
    hint('*')
end
return { 'CLOSED', finish() }
