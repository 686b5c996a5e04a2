-- For Orthanc: sends every MR series that has come to rest to the berdiff node, and nothing else.
-- Results come back as SEG and OT: without the filter they would go round in circles.
--
-- In Orthanc's configuration:
--   "LuaScripts": ["route.lua"],
--   "DicomModalities": {"berdiff": ["BERDIFF", "127.0.0.1", 11112]}

function OnStableSeries(seriesId, tags, metadata)
  if tags["Modality"] == "MR" then
    RestApiPost("/modalities/berdiff/store", seriesId)
  end
end
