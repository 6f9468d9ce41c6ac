-- Slots, for the requests that change them: token, granted_by, holder, node, taken_at, freed_at, moved_at, offer, force,
-- revision, factor, refusals.

local function read_slot(record)
    local s = {}
    s.token, s.granted_by, s.holder, s.node, s.taken_at, s.freed_at, s.moved_at, s.offer, s.force, s.revision,
        s.factor, s.refusals = match(record,
        '^(%d+)\t(%x*)\t(%x*)\t([^\t]*)\t(%d*)\t(%d*)\t(%d*)\t([^\t]*)\t(%d*)\t(%d*)\t(%d*)(.*)$')
    s.token = tonumber(s.token)
    return s
end

local function write_slot(s)
    return concat({ text(s.token), s.granted_by, s.holder, s.node, s.taken_at, s.freed_at, s.moved_at, s.offer, s.force,
        s.revision, s.factor }, '\t') .. s.refusals
end

local function count_out(s, factor, slot_token)
    s.count = max(s.count - 1, 0)
    s.digest = math.fmod(s.digest + MODULUS - part(factor, slot_token), MODULUS)
    s.dirty = true
end

local function live(id)
    local s = session(id)
    return s and s.live
end
